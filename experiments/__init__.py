"""Studies built on sslx; each module is one runnable experiment."""
