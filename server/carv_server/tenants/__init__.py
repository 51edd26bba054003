"""Who may call, for what, and how much: tenants, their credentials and their quotas."""
