-- Run on each new connection and every second: reports whether this Redis can keep nonces, and makes its memory begin
-- now when it may have lost some.
--
-- KEYS[1] since when it remembers, microseconds; KEYS[2] which node wrote that
-- ARGV[1] "1": the memory begins now, whatever is known of the node
-- -> { maxmemory_policy or '' where it cannot be read, the error of a write or '' , "1" if the memory begins now }
local function section(name)
    local text = redis.pcall('INFO', name)
    return type(text) == 'string' and text or ''
end
local memory, server, replication = section('memory'), section('server'), section('replication')
local policy = string.match(memory, 'maxmemory_policy:([%w-]+)') or ''
-- A start has another run_id. A promoted replica has another master_replid: replication is asynchronous, so it may
-- lack the last nonces. Both also change when a node is promoted that was primary before.
local node = (string.match(server, 'run_id:(%w+)') or '') .. '/' .. (string.match(replication, 'master_replid:(%w+)') or '')

local since = redis.call('GET', KEYS[1])
local another = redis.call('GET', KEYS[2]) ~= node
-- While Redis may evict nonces its memory begins with every look: what was evicted stays refused afterwards.
local anew = ARGV[1] == '1' or not since or another or (policy ~= '' and policy ~= 'noeviction')
if anew then
    local time = redis.call('TIME')
    since = string.format('%.0f', time[1] * 1000000 + time[2])
end
-- Written each time: only a write shows that the node is a replica, or full.
local done = redis.pcall('SET', KEYS[1], since)
if not done.err and another then done = redis.pcall('SET', KEYS[2], node) end
return { policy, done.err or '', anew and '1' or '0' }
