-- The edge ARGV[3] is alive; dead ones' chats end. Nothing is written where the data is not that of id ARGV[4]; where
-- today's counts are gone, only that the edge is alive.
-- Replies echo, the data's id ('' when it or today's counts are gone), now, the moment of this edge's last beat as the
-- data has it (0 where it has none), how many chats were ended, then the edge's own chats. Moments are microseconds.

local data = whole()
local lease = tonumber(redis.call('ZSCORE', EDGES, ARGV[3]) or LEASE)
local reply = {ECHO, data, now, lease - LEASE, 0}
if redis.call('HGET', META, 'id') == ARGV[4] then
  renew(ARGV[3])
end
if data == ARGV[4] then
  reply[5] = sweep()
  for _, chat in ipairs(redis.call('SMEMBERS', key('edge', ARGV[3]))) do
    reply[#reply + 1] = chat
  end
end
return reply
