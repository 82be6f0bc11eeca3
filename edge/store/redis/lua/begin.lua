-- Makes the data where there is none. ARGV[3]: its id, ARGV[4]: the pseudonyms' secret, ARGV[5]: the signing keys.
-- Replies echo, schema, id, secret, and 1 where today's counts were gone and begin anew.

if redis.call('EXISTS', META) == 0 then
  redis.call('HSET', META, 'schema', 1, 'id', ARGV[3], 'pseudonym_key', ARGV[4], 'signing_keys', ARGV[5], 'version', 1)
end
local gone = whole() == '' and 1 or 0
if gone == 1 then
  begin_day()
end
local meta = redis.call('HMGET', META, 'schema', 'id', 'pseudonym_key')
return {ECHO, meta[1], meta[2], meta[3], gone}
