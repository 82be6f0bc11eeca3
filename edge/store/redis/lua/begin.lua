-- Makes the data where there is none. ARGV[3]: its id, ARGV[4]: the pseudonyms' secret, ARGV[5]: the signing keys,
-- ARGV[6]: the edge that starts, '' for an owner, who decides nothing about counts by looking at them.
-- Replies echo, schema, id, secret, and what is known of today's counts: 'whole'; 'gone'; or 'anew', gone and begun
-- with nothing, by an edge that is the only one: others that run have raised the alarm, and it is not one edge's to lift.

if redis.call('EXISTS', META) == 0 then
  redis.call('HSET', META, 'schema', 1, 'id', ARGV[3], 'pseudonym_key', ARGV[4], 'signing_keys', ARGV[5], 'version', 1)
end
local counts = whole() == '' and 'gone' or 'whole'
if counts == 'gone' and ARGV[6] ~= '' and redis.call('ZCOUNT', EDGES, now, '+inf') == 0 then
  begin_day()
  counts = 'anew'
end
local meta = redis.call('HMGET', META, 'schema', 'id', 'pseudonym_key')
return {ECHO, meta[1], meta[2], meta[3], counts}
