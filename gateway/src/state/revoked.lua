-- What is revoked, shared by all edges. Changes are numbered in microseconds since 1970, so that a Redis that came back
-- without its last changes gives out no number twice. They stay below 2^53, so that Lua's doubles are exact.
--
-- KEYS[1] hash: key -> revocation, JSON; those that were taken back too, until they would have been over
-- KEYS[2] sorted set: key -> the number of its last change
-- KEYS[3] sorted set: key -> when it is over, ms
-- KEYS[4] hash: epoch, which names this memory: another one begins when Redis may have lost something; seq, the last
--         number; run, which start of Redis gave it
-- ARGV[1] now, ms; ARGV[2] a name for a memory that begins now
-- ARGV[3] "pull": ARGV[4] the memory that the caller knows, ARGV[5] the last change that it knows, ARGV[6] most to tell
--         -> { epoch, last change told, changes left, revocation... }
-- ARGV[3] "put": ARGV[4] most that may be kept, ARGV[5] "1" for what is revoked or taken back now, "0" for what an edge
--         still knows, then key, revocation, until, ...
--         -> { 1, "1" if it was revoked before and "0" if not, what counts now, ... } or, when there is no room and
--         nothing was done, { 0 }
local entries, seqs, untils, head = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

for _, key in ipairs(redis.call('ZRANGEBYSCORE', untils, '-inf', ARGV[1], 'LIMIT', 0, 500)) do
  redis.call('HDEL', entries, key)
  redis.call('ZREM', seqs, key)
  redis.call('ZREM', untils, key)
end
if redis.call('HSETNX', head, 'epoch', ARGV[2]) == 1 then
  redis.call('DEL', entries, seqs, untils)
end
-- A start, and a copy that has taken over, has another name. Who may not ask for it relies on the numbers alone.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
if redis.call('HGET', head, 'run') ~= run then
  redis.call('HSET', head, 'epoch', ARGV[2], 'run', run)
end
local seq = tonumber(redis.call('HGET', head, 'seq') or 0)

if ARGV[3] == 'pull' then
  local after = ARGV[5]
  if redis.call('HGET', head, 'epoch') ~= ARGV[4] then
    after = '0'
  elseif tonumber(after) > seq then
    redis.call('HSET', head, 'epoch', ARGV[2])
    after = '0'
  end
  local epoch = redis.call('HGET', head, 'epoch')
  local changed = redis.call('ZRANGEBYSCORE', seqs, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[6])
  local last = after
  local answer = { epoch, last, '0' }
  for i = 1, #changed, 2 do
    answer[#answer + 1] = redis.call('HGET', entries, changed[i])
    last = changed[i + 1]
  end
  answer[2] = last
  answer[3] = tostring(redis.call('ZCOUNT', seqs, '(' .. last, '+inf'))
  return answer
end

local new = 0
for i = 6, #ARGV, 3 do
  new = new + 1 - redis.call('HEXISTS', entries, ARGV[i])
end
if redis.call('HLEN', entries) + new > tonumber(ARGV[4]) then return { '0' } end

-- The same as `Revocation::after` in filters/src/jwt/revocation.rs. Times have 13 digits, of which cjson writes 14.
local function joined(before, after)
  if before.undone and not after.undone then return after end
  after.until_ms = math.max(before.until_ms, after.until_ms)
  if not after.undone then
    local one, other = before.issued_until_ms, after.issued_until_ms
    after.issued_until_ms = one and other and math.max(one, other) or nil
  end
  return after
end

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local answer = { '1' }
for i = 6, #ARGV, 3 do
  local key, revocation, until_ms = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local there = redis.call('HGET', entries, key)
  local before = there and cjson.decode(there)
  local is_news = true
  local holds = before and before.until_ms > tonumber(ARGV[1])
  answer[#answer + 1] = holds and not before.undone and '1' or '0'
  if holds then
    if ARGV[5] == '0' and before.undone then
      is_news = false
    else
      local after = joined(before, cjson.decode(revocation))
      is_news = ARGV[5] == '1'
        or after.until_ms ~= before.until_ms
        or after.issued_until_ms ~= before.issued_until_ms
      revocation, until_ms = cjson.encode(after), string.format('%.0f', after.until_ms)
    end
  end
  if is_news then
    seq = math.max(seq + 1, now_us)
    redis.call('HSET', entries, key, revocation)
    redis.call('ZADD', seqs, string.format('%.0f', seq), key)
    redis.call('ZADD', untils, until_ms, key)
    answer[#answer + 1] = revocation
  else
    answer[#answer + 1] = there
  end
end
redis.call('HSET', head, 'seq', string.format('%.0f', seq))
return answer
