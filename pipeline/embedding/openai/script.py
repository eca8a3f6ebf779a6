"""The meter of the whole cluster: the arithmetic of `meter.py` in Redis, in one step, by Redis' clock.

One hash a scope (endpoint, account, model):

    at                          when it was last brought up to date, in ms of Redis' clock
    used_requests, used_tokens  of the burst
    big, big_until, held_until  of a request larger than the burst
    paused_until                nobody asks before
    limit_requests, limit_tokens  as the server's answers say
"""

from __future__ import annotations

from pipeline.embedding.openai.meter import (
    BURST_SECONDS,
    HOLD_SECONDS,
    JITTER_SECONDS,
    MINUTE,
    MOST_OF_LIMIT,
)

# A hash that nobody has used for so long is forgotten, and what it learned with it.
_KEPT_MS = 86_400_000

# ARGV: 1 now (ms; empty: Redis' own), 2 and 3 the limits that are set (0: none), 4 and 5 those before any is learned,
# 6 the reserve. TIME before a write needs `replicate_commands` up to Redis 6.
_COMMON = f"""
if redis.replicate_commands then redis.replicate_commands() end
local key = KEYS[1]
local now = tonumber(ARGV[1])
if not now then
  local clock = redis.call('TIME')
  now = tonumber(clock[1]) * 1000 + tonumber(clock[2]) / 1000
end
local names = {{'at', 'used_requests', 'used_tokens', 'big', 'big_until', 'held_until', 'paused_until',
  'limit_requests', 'limit_tokens'}}
local found, m = redis.call('HMGET', key, unpack(names)), {{}}
for i, name in ipairs(names) do m[name] = tonumber(found[i] or nil) or 0 end
local reserve = tonumber(ARGV[6])
local requests, tokens, burst_requests, burst_tokens

local function limit(set, learned, default)
  if set > 0 and learned > 0 then return math.min(set, learned) end
  if set > 0 then return set end
  if learned > 0 then return learned end
  return default
end
local function limits()
  requests = limit(tonumber(ARGV[2]), m.limit_requests, tonumber(ARGV[4]))
  tokens = limit(tonumber(ARGV[3]), m.limit_tokens, tonumber(ARGV[5]))
  burst_requests = math.max(1, math.floor(requests * {BURST_SECONDS} / {MINUTE}))
  burst_tokens = math.max(1, tokens * {BURST_SECONDS} / {MINUTE})
end
local function burst()
  return math.max(burst_tokens, math.min(m.big, {MOST_OF_LIMIT} * tokens))
end
local function rate_requests() return (requests - burst_requests + 1) / {1000 * (MINUTE + JITTER_SECONDS)} end
local function rate_tokens() return (tokens - burst()) / {1000 * (MINUTE + JITTER_SECONDS)} end
local function reserves()
  if reserve <= 0 then return 0, 0 end
  return math.max(1, reserve * burst_requests), reserve * burst()
end
local function begin_anew()
  local r, t = reserves()
  m.used_requests = math.max(m.used_requests, burst_requests - r)
  m.used_tokens = math.max(m.used_tokens, burst() - t)
end
local function save()
  local fields = {{}}
  for _, name in ipairs(names) do
    fields[#fields + 1] = name
    fields[#fields + 1] = string.format('%.6f', m[name])
  end
  redis.call('HSET', key, unpack(fields))
  redis.call('PEXPIRE', key, {_KEPT_MS})
end

limits()
if m.at == 0 then
  m.at = now
  begin_anew()
end
local passed = math.max(0, now - m.at)
m.used_requests = math.max(0, m.used_requests - passed * rate_requests())
m.used_tokens = math.max(0, m.used_tokens - passed * rate_tokens())
m.at = math.max(m.at, now)
if now >= m.big_until then m.big = 0 end
"""

# ARGV: 7 requests, 8 tokens, 9 '1' of a query, 10 '1' of a process that went by its own share until now.
# Returns: ms to wait ('0': granted), now in ms, the limits of requests and of tokens; as text, since numbers would be
# cut to whole ones.
TAKE = (
    _COMMON
    + f"""
local cost_requests, cost_tokens, query = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9] == '1'
if ARGV[10] == '1' then begin_anew() end
cost_tokens = math.min(cost_tokens, {MOST_OF_LIMIT} * tokens)
cost_requests = math.min(cost_requests, burst_requests)
local large = cost_tokens > burst_tokens
if large then
  if cost_tokens > burst() then
    m.used_tokens = m.used_tokens + cost_tokens - burst()
    m.big = cost_tokens
  end
  m.big_until = now + {2000 * MINUTE}
end
local most_requests, most_tokens = burst_requests, burst()
if not query then
  local r, t = reserves()
  most_requests = most_requests - math.min(r, most_requests - cost_requests)
  most_tokens = most_tokens - math.min(t, most_tokens - cost_tokens)
end
local wait = math.max(
  m.paused_until - now,
  (m.used_requests + cost_requests - most_requests) / rate_requests(),
  (m.used_tokens + cost_tokens - most_tokens) / rate_tokens())
if not query and not large then wait = math.max(wait, m.held_until - now) end
if wait > 1e-6 then
  if large then
    m.held_until = now + wait + {1000 * HOLD_SECONDS}
    m.big_until = m.big_until + wait
  end
else
  wait = 0
  if large then m.held_until = 0 end
  m.used_requests = m.used_requests + cost_requests
  m.used_tokens = m.used_tokens + cost_tokens
end
save()
return {{string.format('%.6f', wait), string.format('%.3f', now), tostring(requests), tostring(tokens)}}
"""
)

# ARGV: 7 tokens used beyond those charged, 8 ms to pause, 9 and 10 the limits that the server says (0: none), 11 and 12
# what it says is left of them (empty: nothing said). Returns as TAKE; the first is the ms until a pause ends.
TELL = (
    _COMMON
    + """
local before_requests, before_tokens = burst_requests, burst_tokens
if tonumber(ARGV[9]) > 0 then m.limit_requests = tonumber(ARGV[9]) end
if tonumber(ARGV[10]) > 0 then m.limit_tokens = tonumber(ARGV[10]) end
limits()
m.used_requests = m.used_requests * math.min(1, burst_requests / before_requests)
m.used_tokens = m.used_tokens * math.min(1, burst_tokens / before_tokens)
m.used_tokens = math.max(0, m.used_tokens + tonumber(ARGV[7]))
-- Somebody else may use the account too: there is never more of the burst left than the server has.
if tonumber(ARGV[11]) then m.used_requests = math.max(m.used_requests, burst_requests - tonumber(ARGV[11])) end
if tonumber(ARGV[12]) then m.used_tokens = math.max(m.used_tokens, burst() - tonumber(ARGV[12])) end
if tonumber(ARGV[8]) > 0 then m.paused_until = math.max(m.paused_until, now + tonumber(ARGV[8])) end
save()
return {string.format('%.6f', math.max(0, m.paused_until - now)), string.format('%.3f', now),
  tostring(requests), tostring(tokens)}
"""
)
