"""The contenders, one module each: `Contender` has one method per bench it takes part in."""
