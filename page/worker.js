// The SHA-256 of a file (FIPS 180-4), read piece by piece: SubtleCrypto wants all of it in memory, and TLS.
const READ = 4 << 20;   // bytes read at once
const primes = [];
for (let n = 2; primes.length < 64; n++) if (primes.every(p => n % p)) primes.push(n);
const fraction = root => Math.floor((root % 1) * 2 ** 32);
const K = Int32Array.from(primes, p => fraction(Math.cbrt(p)));
const START = primes.slice(0, 8).map(p => fraction(Math.sqrt(p))), H = new Int32Array(8), W = new Int32Array(64);

/** Takes blocks of 64 bytes into H. */
function update(blocks) {
    const view = new DataView(blocks);
    for (let at = 0; at < blocks.byteLength; at += 64) {
        for (let i = 0; i < 16; i++) W[i] = view.getInt32(at + 4 * i);
        for (let i = 16; i < 64; i++) {
            const x = W[i - 15], y = W[i - 2];
            W[i] = W[i - 16] + W[i - 7] + ((x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3)
                + ((y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10);
        }
        let a = H[0], b = H[1], c = H[2], d = H[3], e = H[4], f = H[5], g = H[6], h = H[7];
        for (let i = 0; i < 64; i++) {
            const s = (e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7);
            const t = h + s + (g ^ e & (f ^ g)) + K[i] + W[i] | 0;
            const u = ((a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10)) + (a & b | c & (a | b)) | 0;
            h = g, g = f, f = e, e = d + t | 0, d = c, c = b, b = a, a = t + u | 0;
        }
        H[0] += a, H[1] += b, H[2] += c, H[3] += d, H[4] += e, H[5] += f, H[6] += g, H[7] += h;
    }
}

onmessage = async ({data: file}) => {
    const end = new DataView(new ArrayBuffer(8)), zeros = new Uint8Array((119 - file.size % 64) % 64);
    end.setBigUint64(0, BigInt(file.size) * 8n);
    const padded = new Blob([file, Uint8Array.of(0x80), zeros, end]);
    H.set(START);
    for (let at = 0; at < padded.size; at += READ) {
        update(await padded.slice(at, at + READ).arrayBuffer());
        postMessage({read: Math.min(at + READ, file.size)});
    }
    const words = Array.from(new Uint32Array(H.buffer), word => word.toString(16).padStart(8, "0"));
    postMessage({sha256: words.join("")});
};
onunhandledrejection = event => { throw event.reason; };    // the file was changed while it was read: onerror
