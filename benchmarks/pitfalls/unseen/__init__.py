"""What the held-back families ``unseen_*`` are made of: models, losses, optimizers and data that no rule was tuned on."""
