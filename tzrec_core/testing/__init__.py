"""What tests of models use: golden cases, and checks that all plugins share; public, for any plugin."""
