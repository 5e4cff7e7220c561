"""What the gateway does about failures and cutovers."""
