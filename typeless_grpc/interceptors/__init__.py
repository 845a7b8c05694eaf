"""What happens around every call, one concern in each module. `app/chain.py` puts them in their order."""
