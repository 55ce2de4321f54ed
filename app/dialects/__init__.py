"""One vendor's API over our facts, a module each."""
