"""The daemon: watches the inbox, recognises each new photo and files it."""
