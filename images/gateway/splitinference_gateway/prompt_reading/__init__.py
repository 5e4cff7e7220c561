"""From a request's body to token ids, in processes of their own."""
