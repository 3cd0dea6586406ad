-- At the first start of the database server: the job store has one already (POSTGRES_DB), MLflow needs one too.
CREATE DATABASE mlflow;
