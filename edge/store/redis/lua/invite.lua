-- The invite of id ARGV[3]. Replies echo and how it is kept, '' when it is not.

return {ECHO, redis.call('HGET', key('invites'), ARGV[3]) or ''}
