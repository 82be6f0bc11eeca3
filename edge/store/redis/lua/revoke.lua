-- Revokes the token of jti ARGV[3], which ends at ARGV[4] (Unix seconds). It is no change of anything else that edges
-- know by heart: callers do it themselves, and often. Replies echo.

redis.call('ZREMRANGEBYSCORE', key('revoked-tokens'), '-inf', now / 1000000)
redis.call('ZADD', key('revoked-tokens'), ARGV[4], ARGV[3])
redis.call('HINCRBY', META, 'tokens-version', 1)
return {ECHO}
