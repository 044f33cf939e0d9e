"""Commands of `trimtab`, a folder each: main parses, config checks, run works."""
