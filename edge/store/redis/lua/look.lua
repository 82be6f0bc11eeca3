-- Replies echo, the data's id ('' when it is gone) and its version, which changes with all that edges know by heart.

return {ECHO, whole(), redis.call('HGET', META, 'version') or ''}
