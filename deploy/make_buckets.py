"""Makes the buckets that are named, where they do not exist yet, in the S3 store of AWS_ENDPOINT_URL."""

import sys

import boto3
from botocore.exceptions import ClientError


def main(names: list[str]) -> None:
    store = boto3.client("s3")
    for name in names:
        try:
            store.create_bucket(Bucket=name)
            print(f"made the bucket {name}")
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
            print(f"the bucket {name} is there")


if __name__ == "__main__":
    main(sys.argv[1:])
