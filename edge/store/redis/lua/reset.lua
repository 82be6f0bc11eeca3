-- As if the caller ARGV[3] had used nothing today and sent nothing this minute. Replies echo.

redis.call('HDEL', key('used', today), ARGV[3])
redis.call('DEL', key('rate', ARGV[3]))
redis.call('HINCRBY', META, 'version', 1)
return {ECHO}
