"""Many ranks that train one model: torch.distributed does the work, and here no promise is lost."""
