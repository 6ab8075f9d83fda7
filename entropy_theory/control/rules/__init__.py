"""The rules, one file per family. Importing this package registers every rule."""
