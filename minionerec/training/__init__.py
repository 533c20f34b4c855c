"""What SFT and RL share on top of ``transformers.Trainer``."""
