"""What the families ``unseen_*`` are made of: models, losses, optimizers and data that no rule had been tuned on when they were written."""
