"""The access of callers: their keys and tokens, what each may call, and their quotas and usage."""
