-- What an owner changes: ARGV[4], commands as a JSON list of lists, all of them and so that every edge hears of it, if
-- the command ARGV[3] (JSON; '' for none) replies ARGV[5]. Key names in them lack the tag. HMAX is HSET of a number
-- that is never lowered.
-- Replies echo and 1, or 0 when nothing was done.

local function run(command)
  if command[1] == 'HMAX' then
    local hash, field, value = key(command[2]), command[3], tonumber(command[4])
    return redis.call('HSET', hash, field, string.format('%d', math.max(value, count(hash, field))))
  end
  return redis.call(command[1], key(command[2]), unpack(command, 3))
end

redis.call('ZREMRANGEBYSCORE', key('revoked-tokens'), '-inf', now / 1000000)
if ARGV[3] ~= '' and tostring(run(cjson.decode(ARGV[3])) or '') ~= ARGV[5] then
  return {ECHO, 0}
end
for _, command in ipairs(cjson.decode(ARGV[4])) do
  run(command)
end
redis.call('HINCRBY', META, 'version', 1)
return {ECHO, 1}
