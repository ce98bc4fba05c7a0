"""Early-warning rules and their backtest."""
