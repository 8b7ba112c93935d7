import CShims
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Ring
@testable import Targets
@testable import Worker

/// The crypt target over real files and the host's kernel.
@Suite("The crypt target")
struct CryptTargetTests {
    /// A key in which no half is like the other.
    static func key(_ bytes: Int) -> [UInt8] { (0..<bytes).map { UInt8(truncatingIfNeeded: $0 * 5 + 1) } }

    /// A sealed memfd, as `ubd-crypt` makes it.
    static func secret(_ key: [UInt8]) throws -> FileDescriptor {
        let flags = UInt32(MFD_CLOEXEC) | UInt32(MFD_ALLOW_SEALING)
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ubd-key", flags) })
        try file.writeAll(key)
        try call("seal") { fcntl(file.raw, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) }
        return file
    }

    private static func cipher(_ key: [UInt8]) throws -> SectorCipher {
        SectorCipher.loadLibrary()
        return try #require(key.withUnsafeBytes { SectorCipher(key: $0) })
    }

    private static func encrypted(_ data: [UInt8], _ key: [UInt8], first: UInt64, shift: Int) throws -> [UInt8] {
        let cipher = try cipher(key)
        defer { cipher.close() }
        var result = [UInt8](repeating: 0, count: data.count)
        let isDone = data.withUnsafeBytes { source in
            result.withUnsafeMutableBytes { memory in
                cipher.encrypt(
                    source.baseAddress!, to: memory.baseAddress!, length: data.count, first: first, shift: shift)
            }
        }
        #expect(isDone)
        return result
    }

    private func target(
        start: UInt64 = 0, size: UInt64 = 1 << 20, block: UInt32 = 4096, first: UInt64 = 0, readOnly: Bool = false,
        key: [UInt8] = key(64)
    ) throws -> CryptTarget {
        CryptTarget(
            start: start, bounds: DiskBounds(size: size, maxIOBytes: 65536), firstSector: first, blockSize: block,
            readOnly: readOnly, writeFlags: 0, ciphers: [try Self.cipher(key)])
    }

    /// IEEE Std 1619-2007, annex B, vectors 4 (XTS-AES-128) and 10 (XTS-AES-256): 512 bytes 00 01 … ff twice, data units 0 and 0xff.
    @Test("encrypts as IEEE 1619 says: the known answers of its annex")
    func knownAnswers() throws {
        let data = (0..<512).map { UInt8(truncatingIfNeeded: $0) }
        let short = Self.bytes("2718281828459045235360287471352631415926535897932384626433832795")
        let four = try Self.encrypted(data, short, first: 0, shift: 9)
        #expect(Array(four[..<16]) == Self.bytes("27a7479befa1d476489f308cd4cfa6e2"))
        #expect(Array(four[496...]) == Self.bytes("0a282df920147beabe421ee5319d0568"))
        let long = Self.bytes(
            "2718281828459045235360287471352662497757247093699959574966967627"
                + "3141592653589793238462643383279502884197169399375105820974944592")
        let ten = try Self.encrypted(data, long, first: 0xff, shift: 9)
        #expect(Array(ten[..<16]) == Self.bytes("1c3b3a102f770386e4836c99e370cf9b"))
        #expect(Array(ten[496...]) == Self.bytes("c4f36ffda9fcea70b9c6e693e148c151"))
    }

    @Test("refuses keys of other lengths")
    func lengths() {
        SectorCipher.loadLibrary()
        for length in [0, 16, 31, 48, 63, 65, 128] {
            #expect(Self.key(length).withUnsafeBytes { SectorCipher(key: $0) } == nil)
        }
    }

    @Test(
        "random requests: the device has what was written, the file its ciphertext, and nothing else changes",
        arguments: [512, 1024, 2048, 4096] as [UInt32], [32, 64])
    func model(block: UInt32, keyLength: Int) throws {
        let (size, start, first) = (1 << 18, 8192, UInt64(77) << 3)
        let key = Self.key(keyLength)
        let file = try TestFile(bytes: start + size + 4096)
        let before = try file.content()
        var queue = try TestQueue(
            target(start: UInt64(start), size: UInt64(size), block: block, first: first, key: key),
            files: [file.file.raw])
        // What lies in the file already is the plaintext of something, which only the device can tell.
        var plain: [UInt8] = []
        for sector in stride(from: 0, to: size >> 9, by: 128) {
            let read = try queue.read(sector: UInt64(sector), sectors: 128)
            #expect(read.result == 65536)
            plain += read.data
        }
        // Not within the macro, which would describe all these bytes.
        let isPlaintext =
            try Self.encrypted(plain, key, first: first, shift: block.trailingZeroBitCount)
            == Array(before[start..<(start + size)])
        #expect(isPlaintext)
        var random = UInt64(block) &* 0x9E37_79B9_7F4A_7C15 | 1
        func next(_ bound: Int) -> Int {
            random ^= random << 13
            random ^= random >> 7
            random ^= random << 17
            return Int(random % UInt64(bound))
        }
        let unit = Int(block)
        for round in 0..<200 {
            let blocks = 1 + next(65536 / unit)
            let at = next(size / unit - blocks + 1) * unit
            let sector = UInt64(at >> 9)
            if next(2) == 0 {
                let data = TestFile.pattern(blocks * unit, seed: UInt8(truncatingIfNeeded: round))
                #expect(try queue.write(sector: sector, data) == Int32(data.count))
                // The writer's memory is as it was.
                let isKept = Array(queue.buffer[..<data.count]) == data
                #expect(isKept)
                plain.replaceSubrange(at..<(at + data.count), with: data)
            } else {
                let read = try queue.read(sector: sector, sectors: UInt32(blocks * unit >> 9))
                let isRight = read.data == Array(plain[at..<(at + blocks * unit)])
                #expect(isRight)
            }
        }
        var expected = before
        expected.replaceSubrange(
            start..<(start + size),
            with: try Self.encrypted(plain, key, first: first, shift: block.trailingZeroBitCount))
        let isAsExpected = try file.content() == expected
        #expect(isAsExpected)
    }

    @Test("refuses what is no whole sector of the volume, what lies beyond its end, and what it does not do")
    func refused() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(size: 1 << 19), files: [file.file.raw])
        #expect(try queue.read(sector: 1, sectors: 8).result == -EIO)
        #expect(try queue.read(sector: 0, sectors: 4).result == -EIO)
        #expect(try queue.read(sector: 1 << 10, sectors: 8).result == -EIO)
        #expect(try queue.write(sector: 1020, TestFile.pattern(4096)) == -EIO)
        // The kernel then writes zeros as data.
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sectors: 8) == -EOPNOTSUPP)
        #expect(try queue.perform(UblkIOOperation.discard, sectors: 8) == -EOPNOTSUPP)
        #expect(queue.submitted.isEmpty)
        #expect(try file.content() == TestFile.pattern(1 << 20))
    }

    @Test("writes nothing to a read-only volume")
    func readOnly() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(readOnly: true), files: [file.file.raw])
        #expect(try queue.read(sector: 0, sectors: 8).result == 4096)
        #expect(try queue.write(sector: 0, TestFile.pattern(4096)) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        #expect(queue.submitted.map(\.operation) == [IOUring.Operation.read])
    }

    @Test("fails a read of what the file has lost, where zeros would decrypt to garbage")
    func shorter() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(), files: [file.file.raw])
        #expect(ftruncate(file.file.raw, 6144) == 0)
        #expect(try queue.read(sector: 8, sectors: 8).result == -EIO)
        #expect(try queue.read(sector: 0, sectors: 8).result == 4096)
        #expect(try queue.read(sector: 0, sectors: 32).result == -EIO)
    }

    @Test("forces a write to the storage when it is told to, and flushes")
    func forced() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(), files: [file.file.raw])
        #expect(try queue.write(sector: 0, TestFile.pattern(4096), flags: LoopTargetTests.fua) == 4096)
        #expect(try queue.write(sector: 0, TestFile.pattern(4096)) == 4096)
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        #expect(queue.submitted.map(\.operationFlags) == [IOUring.ReadWrite.dataSync, 0, 1])
        #expect(queue.submitted.last?.operation == IOUring.Operation.fsync)
    }

    private static func bytes(_ hexadecimal: String) -> [UInt8] {
        stride(from: 0, to: hexadecimal.utf8.count, by: 2).map { at in
            UInt8(hexadecimal.dropFirst(at).prefix(2), radix: 16)!
        }
    }
}
