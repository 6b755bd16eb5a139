//! What the store does for us in one step: scripts of Lua 5.1, called by the SHA-1 of their text.
//!
//! Each works on keys of one partition, so of one slot. A script is not interrupted and is applied as a whole; each may
//! run twice with the same arguments (a lost reply), and says the same then. Sizes of values are those of [`super::header`]:
//! `sub(v, 1, 8)` is a version, `>I6` at 9 a deadline, less than 15 octets are a deletion.
//!
//! `EXISTS` at the end reads what was written: CLIENT TRACKING forgets a key when it changes, also when we change it, and
//! remembers it again when it is read on the connection that wants to hear of it. `2^25`: no more octets of values are
//! returned than these, so that a reply fits into memory; a claim returns one entry at least.

use super::resp;

/// Conditional writes. KEYS: the entries. ARGV: their values; the versions that are expected, in one string, 0 for none.
///
/// 0, or what was not written: an index and the value that stands there (nil: none; 0: not told, there were too many).
pub static PUT: Script = Script::new(
    "local call,sub,n=redis.call,string.sub,#KEYS \
     local now,want,w,m,out,size=call('MGET',unpack(KEYS)),ARGV[n+1],{},0,nil,0 \
     for i=1,n do local v,c=ARGV[i],now[i] local k=c and sub(c,1,8) or '\\0\\0\\0\\0\\0\\0\\0\\0' \
     if k==sub(want,8*i-7,8*i) or k==sub(v,1,8) then m=m+2 w[m-1]=KEYS[i] w[m]=v \
     else out=out or {} size=size+(c and #c or 0) out[#out+1]=i out[#out+1]=size<=2^25 and c or (c and 0) end end \
     if m>0 then call('MSET',unpack(w)) end \
     call('EXISTS',unpack(KEYS)) return out or 0",
);

/// PUT of one entry: half of the server's time goes into calls from Lua, and here are the fewest and cheapest. Reading any
/// part of what stands there has it remembered for CLIENT TRACKING. A key of another type is absent, as it is to PUT.
pub static PUT_ONE: Script = Script::new(
    "local call,k,v=redis.call,KEYS[1],ARGV[1] local c=redis.pcall('GETRANGE',k,0,7) \
     if c=='' or type(c)~='string' then c='\\0\\0\\0\\0\\0\\0\\0\\0' end \
     if c==ARGV[2] or c==string.sub(v,1,8) then call('SET',k,v) call('EXISTS',k) return 0 end \
     return {1,call('MGET',k)[1]}",
);

/// Unconditional writes. KEYS: the entries. ARGV: their values. 0.
pub static SET: Script = Script::new(
    "local w,n={},#KEYS for i=1,n do w[2*i-1]=KEYS[i] w[2*i]=ARGV[i] end \
     redis.call('MSET',unpack(w)) redis.call('EXISTS',unpack(KEYS)) return 0",
);

/// Writes with deadlines, deletions or a guard. KEYS: the entries; with `keeps` the partition's deadlines; with an owner
/// the lock. ARGV: the values, of deletions the version (and an octet more: what is gone already is a conflict); the
/// versions that are expected, or nothing; the owner, or nothing; `keeps`: 1, or nothing.
///
/// As PUT; −1: the lock is not the owner's.
pub static CHANGE: Script = Script::new(
    "local call,sub,n=redis.call,string.sub,#ARGV-3 \
     local want,owner,ttl=ARGV[n+1],ARGV[n+2],ARGV[n+3]~='' and KEYS[n+1] \
     if owner~='' and call('GETRANGE',KEYS[#KEYS],0,7)~=owner then return -1 end \
     local now,none,out,size=want~='' and call('MGET',unpack(KEYS,1,n)),'\\0\\0\\0\\0\\0\\0\\0\\0',nil,0 \
     for i=1,n do local key,v,good=KEYS[i],ARGV[i],true \
     if now then local c=now[i] local k=c and sub(c,1,8) or none \
     good=k==sub(want,8*i-7,8*i) or k==sub(v,1,8) or #v==8 and not c \
     if not good then out=out or {} size=size+(c and #c or 0) \
     out[#out+1]=i out[#out+1]=size<=2^25 and c or (c and 0) end end \
     if good then local due=0 \
     if #v<15 then call('DEL',key) else due=struct.unpack('>I6',v,9) \
     if due==0 or ttl then call('SET',key,v) else call('SET',key,v,'PXAT',due) end end \
     if ttl then local member=sub(key,#ttl-3) \
     if due>0 then call('ZADD',ttl,due,member) else call('ZREM',ttl,member) end end end end \
     call('EXISTS',unpack(KEYS,1,n)) return out or 0",
);

/// Entries that are due. KEYS: a partition's deadlines. ARGV: now, when they are due again, how many at most.
///
/// Keys (without the prefix) and values, in turn. What is too short to be an entry, or of another type (`MGET` has nil for
/// it, `GET` an error), is due no more. An entry and its deadline may be on two nodes while their slot moves: asked for
/// together they are an error then, of which nothing has come yet; alone, what is elsewhere looks like gone.
pub static CLAIM: Script = Script::new(
    "local call,ttl,out,gone,size=redis.call,KEYS[1],{},{},0 local prefix=string.sub(ttl,1,-5) \
     for _,m in ipairs(call('ZRANGEBYSCORE',ttl,'-inf',ARGV[1],'LIMIT',0,ARGV[3])) do \
     local v=call('MGET',ttl,prefix..m)[2] \
     if v and #v>14 then size=size+#v if size>2^25 and #out>0 then break end out[#out+1]=m out[#out+1]=v \
     else gone[#gone+1]=m end end \
     for i=1,#out,2 do call('ZADD',ttl,ARGV[2],out[i]) end for i=1,#gone do call('ZREM',ttl,gone[i]) end \
     return out",
);

/// Entries whose expiry was handled. KEYS: the entries, the partition's deadlines. ARGV: the versions that were handled,
/// in one string. What still stands so is deleted; what was written since is due when it says.
///
/// How many were deleted.
pub static EXPIRED: Script = Script::new(
    "local call,sub,n,count=redis.call,string.sub,#KEYS-1,0 local ttl=KEYS[n+1] \
     for i=1,n do local key=KEYS[i] local h,member=redis.pcall('GETRANGE',key,0,13),sub(key,#ttl-3) \
     if #h<14 or sub(h,1,8)==sub(ARGV[1],8*i-7,8*i) then count=count+call('DEL',key) call('ZREM',ttl,member) \
     else local due=struct.unpack('>I6',h,9) \
     if due>0 then call('ZADD',ttl,due,member) else call('ZREM',ttl,member) end end end \
     return count",
);

/// Whatever stands there. KEYS: the entries, the partition's deadlines. How many were deleted.
pub static DROP: Script = Script::new(
    "local call,ttl,w=redis.call,KEYS[#KEYS],{} for i=1,#KEYS-1 do w[i]=string.sub(KEYS[i],#ttl-3) end \
     redis.pcall('ZREM',ttl,unpack(w)) return call('UNLINK',unpack(KEYS,1,#KEYS-1))",
);

/// Takes a lock. KEYS: the lock, the partition's fence. ARGV: the owner, the lease in milliseconds.
///
/// What stands there is the owner and its fence, in decimal. The fence, from 1; or for how many milliseconds more it is
/// another's, negated.
pub static LOCK: Script = Script::new(
    "local call,sub,lock=redis.call,string.sub,KEYS[1] local held=call('GET',lock) \
     if held and sub(held,1,8)~=ARGV[1] then return -math.max(1,call('PTTL',lock)) end \
     local fence=held and sub(held,9) or call('INCR',KEYS[2]) \
     call('SET',lock,ARGV[1]..fence,'PX',ARGV[2]) return tonumber(fence)",
);

/// KEYS: a lock. ARGV: its owner, the lease in milliseconds. 1; 0: it is not the owner's.
pub static RENEW: Script = Script::new(
    "if redis.call('GETRANGE',KEYS[1],0,7)~=ARGV[1] then return 0 end \
     redis.call('PEXPIRE',KEYS[1],ARGV[2]) return 1",
);

/// KEYS: a lock. ARGV: its owner. 1; 0: it is not the owner's.
pub static UNLOCK: Script =
    Script::new("if redis.call('GETRANGE',KEYS[1],0,7)~=ARGV[1] then return 0 end redis.call('DEL',KEYS[1]) return 1");

pub static ALL: [&Script; 10] = [&PUT, &PUT_ONE, &SET, &CHANGE, &CLAIM, &EXPIRED, &DROP, &LOCK, &RENEW, &UNLOCK];

#[derive(Debug)]
pub struct Script {
    text: &'static str,
    /// `EVALSHA` and the digest, as they are sent.
    head: [u8; 60],
}

impl Script {
    const fn new(text: &'static str) -> Self {
        let mut head = *b"$7\r\nEVALSHA\r\n$40\r\n........................................\r\n";
        let digest = sha1(text.as_bytes());
        let mut at = 0;
        while at < digest.len() {
            head[18 + 2 * at] = b"0123456789abcdef"[(digest[at] >> 4) as usize];
            head[19 + 2 * at] = b"0123456789abcdef"[(digest[at] & 15) as usize];
            at += 1;
        }
        Self { text, head }
    }

    /// The digest, in letters: what a node answers that has loaded it.
    pub fn digest(&self) -> &[u8] {
        &self.head[18..58]
    }

    /// The command that makes it known to a node: what to do about NOSCRIPT.
    pub fn load(&self) -> Vec<u8> {
        let mut out = Vec::new();
        resp::command(&mut out, &[b"SCRIPT", b"LOAD", self.text.as_bytes()]);
        out
    }

    /// Appends the beginning of a call: so many keys come, and so many arguments.
    pub(super) fn call(&self, out: &mut Vec<u8>, keys: usize, arguments: usize) {
        resp::arguments_follow(out, 3 + keys + arguments);
        out.extend_from_slice(&self.head);
        resp::number(out, keys as u64);
    }
}

/// FIPS 180-4, section 6.1; here it names texts and protects nothing.
const fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    // The message, 0x80, zeros, and the number of its bits in the last eight octets of a block.
    let padded = (message.len() + 9).div_ceil(64) * 64;
    let bits = (message.len() as u64 * 8).to_be_bytes();
    let mut block = 0;
    while block < padded {
        let mut w = [0_u32; 80];
        let mut t = 0;
        while t < 80 {
            if t < 16 {
                let mut octet = 0;
                while octet < 4 {
                    let at = block + 4 * t + octet;
                    let value = if at < message.len() {
                        message[at]
                    } else if at == message.len() {
                        0x80
                    } else if at >= padded - 8 {
                        bits[at + 8 - padded]
                    } else {
                        0
                    };
                    w[t] = w[t] << 8 | value as u32;
                    octet += 1;
                }
            } else {
                w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
            }
            t += 1;
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        t = 0;
        while t < 80 {
            let (f, k) = match t / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(w[t]);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
            t += 1;
        }
        let add = [a, b, c, d, e];
        t = 0;
        while t < 5 {
            state[t] = state[t].wrapping_add(add[t]);
            t += 1;
        }
        block += 64;
    }
    let mut digest = [0; 20];
    let mut at = 0;
    while at < 20 {
        digest[at] = state[at / 4].to_be_bytes()[at % 4];
        at += 1;
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &[u8]) -> String {
        sha1(text).iter().map(|octet| format!("{octet:02x}")).collect()
    }

    #[test]
    fn the_digest_is_sha1() {
        assert_eq!(hex(b""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        // RFC 3174, section 7.3: tests 1 and 2.
        assert_eq!(hex(b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        let two = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        assert_eq!(hex(two), "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
        assert_eq!(hex(&[b'a'; 1000]), "291e9a6c66994949b57ba5e650361e98fc36b1ba");
    }

    #[test]
    fn a_call_names_the_script_by_its_digest() {
        let mut out = Vec::new();
        UNLOCK.call(&mut out, 1, 1);
        let digest = std::str::from_utf8(UNLOCK.digest()).unwrap();
        assert_eq!(digest, hex(UNLOCK.text.as_bytes()));
        assert_eq!(out, format!("*5\r\n$7\r\nEVALSHA\r\n$40\r\n{digest}\r\n$1\r\n1\r\n").as_bytes());
    }
}
