"""What every route goes through: middleware, keys, limits, errors, event streams."""
