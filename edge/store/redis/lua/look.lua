-- What has changed? ARGV[3]: the version of the revoked tokens that the edge knows.
-- Replies echo, the data's id ('' when it is gone) and its version, which changes with all that edges know by heart but
-- the revoked tokens; then their version, and where it is another than ARGV[3] all of them as (jti, end)s.

local meta = redis.call('HMGET', META, 'version', 'tokens-version')
local tokens = {}
if (meta[2] or '') ~= ARGV[3] then
  tokens = revoked_tokens()
end
return {ECHO, whole(), meta[1] or '', meta[2] or '', tokens}
