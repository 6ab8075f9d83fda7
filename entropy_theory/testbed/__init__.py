"""A task, a tokenizer and a small decoder that train anywhere in minutes: no weights or data are downloaded."""
