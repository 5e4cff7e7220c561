"""Values as Kubernetes writes them: quantities, causes of failed starts, text and times of others."""
