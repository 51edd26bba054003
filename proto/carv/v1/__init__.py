"""Generated messages; `make proto` rewrites this folder from the .proto files."""
