import Glibc
import KernelABI
import Ring
import SystemCalls
import Testing

/// These run against the host's kernel.
@Suite("A ring")
struct RingTests {
    static let flags =
        IOUring.Setup.submitAll | IOUring.Setup.singleIssuer | IOUring.Setup.deferTaskRun
        | IOUring.Setup.cooperativeTaskRun
    static let required = IOUring.EntryFlags.fixedFile

    private func nop(_ userData: UInt64) -> SubmissionEntry {
        SubmissionEntry(operation: IOUring.Operation.nop, flags: 0, file: -1, userData: userData)
    }

    /// Submits `entry` and returns its completion's result.
    private func result(of entry: SubmissionEntry, in ring: inout Ring) -> Int32? {
        ring.push(entry)
        guard ring.submit(waitingFor: 1) == 0 else { return nil }
        var batch = ring.completions()
        let completion = batch.take()
        ring.finish(batch)
        return completion?.result
    }

    @Test("completes what was pushed, in batches, over and over")
    func batches() throws {
        var ring = try Ring(entries: 8, completions: 16, flags: Self.flags)
        for round in 0..<UInt64(100) {
            for index in 0..<UInt64(8) { ring.push(nop(round * 8 + index)) }
            #expect(ring.untaken == 8)
            #expect(ring.submit(waitingFor: 8) == 0)
            #expect(ring.untaken == 0)
            var batch = ring.completions()
            #expect(batch.count == 8)
            var seen: [UInt64] = []
            while let completion = batch.take() { seen.append(completion.userData) }
            ring.finish(batch)
            #expect(seen == (0..<8).map { round * 8 + $0 })
        }
    }

    @Test("has at least the room that was asked for")
    func capacity() throws {
        let ring = try Ring(entries: 100, completions: 200, flags: Self.flags)
        // 128 entries, of which one stays free.
        #expect(ring.capacity == 127)
        #expect(try Ring(entries: 127, completions: 256, flags: Self.flags).capacity == 127)
        #expect(try Ring(entries: 128, completions: 256, flags: Self.flags).capacity == 255)
    }

    @Test("does what it did after its descriptor is gone")
    func registeredIndex() throws {
        var ring = try Ring(entries: 4, completions: 8, flags: Self.flags)
        let descriptor = ring.descriptor
        try ring.registerIndex()
        ring.closeDescriptor()
        #expect(ring.descriptor == -1)
        // fcntl shows that it is closed, unless another test's thread has got the number meanwhile.
        if fcntl(descriptor, F_GETFD) < 0 { #expect(errno == EBADF) }
        #expect(result(of: nop(7), in: &ring) == 0)
    }

    @Test("reads from its file table by index")
    func fileTable() throws {
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ring", 0) })
        try file.writeAll(Array("fixed".utf8))
        var ring = try Ring(entries: 4, completions: 8, flags: Self.flags)
        try ring.register(files: [file.raw])
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 8)
        defer { memory.deallocate() }
        let address = UInt64(UInt(bitPattern: memory))
        #expect(result(of: .read(file: 0, into: address, length: 16, offset: 1, userData: 1), in: &ring) == 4)
        #expect(String(decoding: UnsafeRawBufferPointer(start: memory, count: 4), as: UTF8.self) == "ixed")
        #expect(result(of: .read(file: 1, into: address, length: 16, offset: 0, userData: 1), in: &ring) == -EBADF)
    }

    @Test("once sealed refuses unlisted operations, missing and extra flags, and registrations")
    func seal() throws {
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ring", 0) })
        try file.writeAll([1, 2, 3])
        var ring = try Ring(entries: 4, completions: 8, flags: Self.flags | IOUring.Setup.disabled)
        try ring.register(files: [file.raw])
        try ring.limitWorkers(bounded: 2, unbounded: 1)
        try ring.registerIndex()
        try ring.restrict(
            to: RingSeal(
                operations: [IOUring.Operation.read], registerOperations: [UInt8(IOUring.Register.enableRings)],
                flagsAllowed: 0, flagsRequired: Self.required))
        try ring.enable()
        ring.closeDescriptor()

        let memory = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 8)
        defer { memory.deallocate() }
        let address = UInt64(UInt(bitPattern: memory))
        let read = SubmissionEntry.read(file: 0, into: address, length: 16, offset: 0, userData: 1)
        #expect(result(of: read, in: &ring) == 3)
        func attempt(_ operation: UInt8, _ flags: UInt8) -> SubmissionEntry {
            SubmissionEntry(operation: operation, flags: flags, file: 0, address: address, length: 1, userData: 2)
        }
        #expect(result(of: attempt(IOUring.Operation.nop, Self.required), in: &ring) == -EACCES)
        #expect(result(of: attempt(IOUring.Operation.openAt, Self.required), in: &ring) == -EACCES)
        #expect(result(of: attempt(IOUring.Operation.write, Self.required), in: &ring) == -EACCES)
        #expect(result(of: attempt(IOUring.Operation.read, 0), in: &ring) == -EACCES)
        #expect(
            result(of: attempt(IOUring.Operation.read, Self.required | IOUring.EntryFlags.async), in: &ring) == -EACCES)
        #expect(
            result(of: attempt(IOUring.Operation.read, Self.required | IOUring.EntryFlags.link), in: &ring) == -EACCES)
        #expect(ring.probeRegister(IOUring.Register.personality) == -Int(EACCES))
        #expect(ring.probeRegister(IOUring.Register.files) == -Int(EACCES))
        #expect(result(of: read, in: &ring) == 3)
    }

    @Test("that is disabled does nothing")
    func disabled() throws {
        var ring = try Ring(entries: 4, completions: 8, flags: Self.flags | IOUring.Setup.disabled)
        ring.push(nop(1))
        #expect(ring.submit(waitingFor: 0) == -Int(EBADFD))
        #expect(ring.untaken == 1)
    }
}
