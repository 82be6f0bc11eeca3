-- What an owner changes: ARGV[4], commands as a JSON list of lists, all of them and so that every edge hears of it, if
-- the command ARGV[3] (JSON; '' for none) replies ARGV[5]. Key names in them lack the tag.
-- Replies echo and 1, or 0 when nothing was done.

local function run(command)
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
