-- The edge ARGV[3] stops; what it still had running ends at its estimate. Replies echo and how many that were.

local left = redis.call('SMEMBERS', key('edge', ARGV[3]))
for _, chat in ipairs(left) do
  finish(chat)
end
redis.call('ZREM', EDGES, ARGV[3])
return {ECHO, #left}
