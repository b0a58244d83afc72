"""The registry's atomic steps as Lua scripts (Redis or Valkey 7): what must not be seen half done.

KEYS[1] is the prefix of all keys; its hash tag keeps them on one slot. Every other argument is an ARGV string. The
keys are told in `apps.tunnels.registry`. A device's hash without a session (`s` is empty) is a tombstone: it keeps the
epoch, so that nothing late of the ended session, or of an older one, brings the device back.
"""

from typing import Final

MOVING_MS: Final = 35_000
"""How long a device whose daemon drained counts as on its way: the longest back-off of an agent, 30 s, and a dial."""

_COMMON: Final = (
    f"""
local P = KEYS[1]
local MOVING_MS = {MOVING_MS}
local TOMBSTONE_SECONDS = 3600
"""
    """
local function forget(device, entry)
  if entry[1] and entry[1] ~= '' and entry[2] and entry[2] ~= '' then
    redis.call('HDEL', P .. 'sessions:' .. entry[1], entry[2])
    redis.call('HDEL', P .. 'closing:' .. entry[1], entry[2])
  end
  if entry[4] then redis.call('SREM', P .. 'user:' .. entry[4], device) end
end
local function expect_back(device, drained)
  if drained then
    redis.call('SET', P .. 'moving:' .. device, '1', 'PX', MOVING_MS)
  else
    redis.call('DEL', P .. 'moving:' .. device)
  end
end
local function bury(device, entry, epoch, last)
  local key = P .. 'device:' .. device
  forget(device, entry)
  redis.call('DEL', key)
  redis.call('HSET', key, 'n', '', 's', '', 'e', epoch, 'l', last)
  redis.call('EXPIRE', key, TOMBSTONE_SECONDS)
end
local function drop_node(node)
  local held = redis.call('HGETALL', P .. 'sessions:' .. node)
  local drained = redis.call('HGET', P .. 'node:' .. node, 'draining') == '1'
  for i = 1, #held, 2 do
    local key = P .. 'device:' .. held[i + 1]
    local entry = redis.call('HMGET', key, 'n', 's', 'e', 'u')
    if entry[1] == node and entry[2] == held[i] then
      expect_back(held[i + 1], drained)
      if entry[4] then redis.call('SREM', P .. 'user:' .. entry[4], held[i + 1]) end
      redis.call('DEL', key)
    end
  end
  redis.call('DEL', P .. 'sessions:' .. node, P .. 'closing:' .. node, P .. 'node:' .. node)
  redis.call('ZREM', P .. 'nodes', node)
end
"""
)

HEARTBEAT: Final = (
    _COMMON
    + """
-- node, url, version, started_ms, sessions_count, streams_count, draining, now_ms, ttl_ms, closing_ms
-- returns: state (new, known, superseded), then session, order of each pending close
local node, url, started, now = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[8])
local holder = redis.call('GET', P .. 'url:' .. url)
if holder and holder ~= node then
  local since = tonumber(redis.call('HGET', P .. 'node:' .. holder, 'started') or '0')
  if since > started then return {'superseded'} end
  drop_node(holder)
end
local state = redis.call('EXISTS', P .. 'node:' .. node) == 1 and 'known' or 'new'
redis.call('HSET', P .. 'node:' .. node, 'url', url, 'version', ARGV[3], 'started', ARGV[4], 'sessions', ARGV[5],
  'streams', ARGV[6], 'draining', ARGV[7], 'seen', ARGV[8])
redis.call('PEXPIRE', P .. 'node:' .. node, ARGV[9])
redis.call('SET', P .. 'url:' .. url, node, 'PX', ARGV[9])
redis.call('ZADD', P .. 'nodes', now, node)
local answer = {state}
local closing = redis.call('HGETALL', P .. 'closing:' .. node)
for i = 1, #closing, 2 do
  local at = tonumber(string.match(closing[i + 1], '^(%d+)|'))
  if now - at > tonumber(ARGV[10]) then
    redis.call('HDEL', P .. 'closing:' .. node, closing[i])
  else
    answer[#answer + 1] = closing[i]
    answer[#answer + 1] = closing[i + 1]
  end
end
return answer
"""
)

PUT: Final = (
    _COMMON
    + """
-- node, now_ms, then 9 a session: device, session, epoch, user, connected_at, address, agent, features, and the session
-- that it says it takes over from
-- returns 5 a session: verdict (ok, older, ended), the session that it took the place of: node, session, url, and
-- whether that one was handed over (1)
local node, now, answer = ARGV[1], ARGV[2], {}
for i = 3, #ARGV, 9 do
  local device, session, epoch, user = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local key = P .. 'device:' .. device
  local old = redis.call('HMGET', key, 'n', 's', 'e', 'u', 'b')
  local verdict, was_node, was_session, was_url, handed = 'ok', '', '', '', ''
  local old_epoch = tonumber(old[3] or '-1')
  if old_epoch > epoch or (old_epoch == epoch and old[2] ~= session) then
    verdict = old[2] == '' and 'ended' or 'older'
  else
    if old[2] and old[2] ~= '' and old[2] ~= session then
      was_node, was_session = old[1], old[2]
      was_url = redis.call('HGET', P .. 'node:' .. old[1], 'url') or ''
      if ARGV[i + 8] == old[2] and old[4] == user then handed = '1' end
    end
    local base, since = ARGV[i + 2], ARGV[i + 4]
    if handed == '1' or old[2] == session then base = old[5] or old[3] end
    -- a full list has the daemon's clock, some ms later: what was told once stays
    if old[2] == session then since = redis.call('HGET', key, 'c') or since end
    if old[2] and (old[2] ~= session or old[1] ~= node) then forget(device, old) end
    redis.call('HSET', key, 'n', node, 's', session, 'e', ARGV[i + 2], 'u', user, 'c', since,
      'a', ARGV[i + 5], 'g', ARGV[i + 6], 'f', ARGV[i + 7], 'w', now, 'b', base)
    redis.call('PERSIST', key)
    redis.call('HSET', P .. 'sessions:' .. node, session, device)
    redis.call('SADD', P .. 'user:' .. user, device)
    redis.call('ZADD', P .. 'nodes', 'NX', now, node)
    -- at a daemon that has not told of itself yet it is still on its way, as LOOKUP has it
    if redis.call('EXISTS', P .. 'node:' .. node) == 1 then expect_back(device, false) end
  end
  answer[#answer + 1] = verdict
  answer[#answer + 1] = was_node
  answer[#answer + 1] = was_session
  answer[#answer + 1] = was_url
  answer[#answer + 1] = handed
end
return answer
"""
)

REMOVE: Final = (
    _COMMON
    + """
-- written_before_ms, whether a drain ended them (1, 0; empty: nobody has said, but their node may drain), then 2 a
-- session: device, session; returns how many were removed. A reason that comes when the session is gone already (a full
-- list was quicker) counts too, by `l`, the last session
local removed = 0
for i = 3, #ARGV, 2 do
  local device, session = ARGV[i], ARGV[i + 1]
  local entry = redis.call('HMGET', P .. 'device:' .. device, 'n', 's', 'e', 'u', 'w', 'l')
  if entry[2] and entry[2] == session and tonumber(entry[5] or '0') <= tonumber(ARGV[1]) then
    local drained = ARGV[2]
    if drained == '' then drained = redis.call('HGET', P .. 'node:' .. entry[1], 'draining') end
    bury(device, entry, entry[3], session)
    expect_back(device, drained == '1')
    removed = removed + 1
  elseif entry[2] == '' and entry[6] == session and ARGV[2] ~= '' then
    expect_back(device, ARGV[2] == '1')
  end
end
return removed
"""
)

END: Final = (
    _COMMON
    + """
-- 2 a device: device, epoch; returns 5 for each device that was online: device, node, session, epoch, url
local answer = {}
for i = 1, #ARGV, 2 do
  local entry = redis.call('HMGET', P .. 'device:' .. ARGV[i], 'n', 's', 'e', 'u')
  if tonumber(entry[3] or '-1') <= tonumber(ARGV[i + 1]) then
    if entry[2] and entry[2] ~= '' then
      answer[#answer + 1] = ARGV[i]
      answer[#answer + 1] = entry[1]
      answer[#answer + 1] = entry[2]
      answer[#answer + 1] = entry[3]
      answer[#answer + 1] = redis.call('HGET', P .. 'node:' .. entry[1], 'url') or ''
    end
    bury(ARGV[i], entry, ARGV[i + 1], '')
    expect_back(ARGV[i], false)
  end
end
return answer
"""
)

LOOKUP: Final = """
-- 1 to hear also of those on their way, then devices; returns 11 for each that is online: device, node, url, session,
-- epoch, user, connected_at, address, agent, features, and whether its node drains (1). Of one on its way device, epoch
-- and the last are all: it has no session, or one at a daemon that has not told of itself yet
local P, nodes, answer = KEYS[1], {}, {}
for i = 2, #ARGV do
  local e = redis.call('HMGET', P .. 'device:' .. ARGV[i], 'n', 's', 'e', 'u', 'c', 'a', 'g', 'f')
  local node = {}
  if e[2] and e[2] ~= '' then
    node = nodes[e[1]]
    if node == nil then
      node = redis.call('HMGET', P .. 'node:' .. e[1], 'url', 'draining')
      nodes[e[1]] = node
    end
  end
  if node[1] then
    for _, value in ipairs({ARGV[i], e[1], node[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], node[2] or '0'}) do
      answer[#answer + 1] = value
    end
  elseif ARGV[1] == '1' and redis.call('EXISTS', P .. 'moving:' .. ARGV[i]) == 1 then
    for _, value in ipairs({ARGV[i], '', '', '', e[3] or '0', '', '', '', '', '', '1'}) do
      answer[#answer + 1] = value
    end
  end
end
return answer
"""

LACKING: Final = """
-- node, then 2 a session that it holds: session, device; returns the sessions of which a key of the device, or of its
-- user, was lost: an eviction takes one key and leaves the others
local P, answer = KEYS[1], {}
for i = 2, #ARGV, 2 do
  local e = redis.call('HMGET', P .. 'device:' .. ARGV[i + 1], 'n', 's', 'u')
  local whole = e[1] == ARGV[1] and e[2] == ARGV[i] and e[3]
    and redis.call('SISMEMBER', P .. 'user:' .. e[3], ARGV[i + 1]) == 1
  if not whole then answer[#answer + 1] = ARGV[i] end
end
return answer
"""

REAP: Final = (
    _COMMON
    + """
-- returns the nodes that had expired and are dropped now
local dropped = {}
for _, node in ipairs(redis.call('ZRANGE', P .. 'nodes', 0, -1)) do
  local seen = tonumber(redis.call('ZSCORE', P .. 'nodes', node))
  if redis.call('EXISTS', P .. 'node:' .. node) == 0 and seen < tonumber(ARGV[1]) then
    drop_node(node)
    dropped[#dropped + 1] = node
  end
end
return dropped
"""
)
