"""Who may call, what each caller may do, and how much: keys, tokens, rules, quotas and usage."""
