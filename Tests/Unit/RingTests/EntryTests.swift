import KernelABI
import Ring
import Testing

/// Offsets are those of struct io_uring_sqe in linux/io_uring.h.
@Suite("Submission entries")
struct EntryTests {
    private func bytes(_ entry: SubmissionEntry) -> [UInt8] { withUnsafeBytes(of: entry) { Array($0) } }

    private func word<T: FixedWidthInteger>(_ entry: SubmissionEntry, _ offset: Int, _ type: T.Type = T.self) -> T {
        withUnsafeBytes(of: entry) { $0.loadUnaligned(fromByteOffset: offset, as: T.self) }
    }

    @Test("are 64 bytes, and completions 16")
    func sizes() {
        #expect(MemoryLayout<SubmissionEntry>.size == 64)
        #expect(MemoryLayout<CompletionEntry>.size == 16)
    }

    @Test("of a write have every field in its place")
    func write() {
        let entry = SubmissionEntry.write(
            file: 2, from: 0x1122_3344_5566_7788, length: 4096, offset: 0x99, flags: 0x22, userData: 0xabcd)
        #expect(bytes(entry)[0] == 23)
        #expect(bytes(entry)[1] == 1)
        #expect(word(entry, 4, Int32.self) == 2)
        #expect(word(entry, 8, UInt64.self) == 0x99)
        #expect(word(entry, 16, UInt64.self) == 0x1122_3344_5566_7788)
        #expect(word(entry, 24, UInt32.self) == 4096)
        #expect(word(entry, 28, UInt32.self) == 0x22)
        #expect(word(entry, 32, UInt64.self) == 0xabcd)
        #expect(bytes(entry)[40...].allSatisfy { $0 == 0 })
    }

    @Test("made from a precomputed head are the same as those made from parts")
    func heads() {
        let head = SubmissionEntry.head(operation: IOUring.Operation.read, flags: 1, file: 1)
        #expect(
            SubmissionEntry.transfer(head: head, address: 5, length: 6, offset: 7, operationFlags: 0, userData: 8)
                == .read(file: 1, into: 5, length: 6, offset: 7, userData: 8))
        let command = SubmissionEntry.head(operation: IOUring.Operation.uringCommand, flags: 1, file: 0)
        #expect(
            SubmissionEntry.command(head: command, 0xc010_7520, payload: 1, address: 2, userData: 3)
                == .command(0xc010_7520, file: 0, payload: 1, address: 2, userData: 3))
    }

    @Test("of a queue command carry the command in off and its payload at byte 48")
    func command() {
        let entry = SubmissionEntry.command(0xc010_7521, file: 0, payload: 0x11, address: 0x22, userData: 0x33)
        #expect(bytes(entry)[0] == 46)
        #expect(word(entry, 8, UInt32.self) == 0xc010_7521)
        #expect(word(entry, 12, UInt32.self) == 0)
        #expect(word(entry, 48, UInt64.self) == 0x11)
        #expect(word(entry, 56, UInt64.self) == 0x22)
    }

    @Test("of fallocate take the length from addr and the mode from len")
    func allocate() {
        let entry = SubmissionEntry.allocate(file: 1, mode: 3, offset: 4096, bytes: 8192, userData: 1)
        #expect(bytes(entry)[0] == 17)
        #expect(word(entry, 8, UInt64.self) == 4096)
        #expect(word(entry, 16, UInt64.self) == 8192)
        #expect(word(entry, 24, Int32.self) == 3)
    }

    @Test("of a wait for a word take it from addr, its value from addr2, and have flags where others have a file")
    func waitForWord() {
        let entry = SubmissionEntry.waitForWord(address: 0x1000, value: 7, userData: 1)
        #expect(bytes(entry)[0] == 51)
        #expect(word(entry, 4, UInt32.self) == 2 | 128)
        #expect(word(entry, 8, UInt64.self) == 7)
        #expect(word(entry, 16, UInt64.self) == 0x1000)
        #expect(word(entry, 24, UInt64.self) == 0)
        #expect(word(entry, 40, UInt64.self) == 0)
        #expect(word(entry, 48, UInt64.self) == 0xffff_ffff)
    }

    @Test("of a block discard take the start from addr and the length from addr3")
    func discard() {
        let entry = SubmissionEntry.discardBlocks(file: 1, offset: 512, bytes: 1024, userData: 1)
        #expect(bytes(entry)[0] == 46)
        #expect(word(entry, 8, UInt32.self) == 0x1200)
        #expect(word(entry, 16, UInt64.self) == 512)
        #expect(word(entry, 48, UInt64.self) == 1024)
    }
}
