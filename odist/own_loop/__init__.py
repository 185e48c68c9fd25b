"""Teachers for a training loop of one's own: what `import odist` offers."""
