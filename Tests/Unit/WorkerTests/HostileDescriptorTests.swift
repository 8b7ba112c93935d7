import Glibc
import KernelABI
import Testing

@testable import Worker

@Suite("Hostile descriptors")
struct HostileDescriptorTests {
    /// Numbers of all magnitudes, and those on both sides of the limits.
    private struct Numbers: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            // splitmix64
            state &+= 0x9e37_79b9_7f4a_7c15
            var value = state
            value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
            value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
            return value ^ value >> 31
        }

        mutating func near(_ limits: [UInt64]) -> UInt64 {
            switch next() % 4 {
            case 0: next() >> (next() % 64)
            case 1: next() % 4
            case 2: .max - next() % 4
            default: limits[Int(next() % UInt64(limits.count))] &+ next() % 5 &- 2
            }
        }
    }

    @Test("let nothing pass that is not wholly on the disk, whatever the descriptor says")
    func hostileDescriptors() {
        var numbers = Numbers(state: UInt64.random(in: .min ... .max))
        let seed = numbers.state
        var inside = 0
        for _ in 0..<200_000 {
            let size = numbers.next() >> (1 + numbers.next() % 60)
            let maximum = UInt32(truncatingIfNeeded: numbers.next() >> (32 + numbers.next() % 30))
            let bounds = DiskBounds(size: size, maxIOBytes: maximum)
            let sectors = size / 512
            let descriptor = UblkIODescriptor(
                operationAndFlags: UInt32(truncatingIfNeeded: numbers.next()),
                sectors: UInt32(truncatingIfNeeded: numbers.near([sectors, UInt64(maximum / 512)])),
                startSector: numbers.near([sectors, sectors &- UInt64(maximum / 512)]),
                address: numbers.next())
            // In enough bits to avoid overflow.
            let (end, overflow) = descriptor.startSector.addingReportingOverflow(UInt64(descriptor.sectors))
            let fits = !overflow && end <= sectors
            let hasRoom = fits && UInt64(descriptor.sectors) * 512 <= UInt64(maximum)
            inside += fits ? 1 : 0
            #expect(bounds.contains(descriptor) == fits, "seed \(seed): \(descriptor) on \(size) bytes")
            #expect(bounds.containsData(descriptor) == hasRoom, "seed \(seed): \(descriptor), at most \(maximum)")
        }
        // Both results must have occurred often.
        #expect(inside > 5_000 && inside < 195_000, "seed \(seed): \(inside) of 200000 fit")
    }

    @Test("are what a loop target and a null target submit and answer by", arguments: [0, 4096, 1 << 40] as [UInt64])
    func targets(start: UInt64) throws {
        let size: UInt64 = 1 << 20
        let bounds = DiskBounds(size: size, maxIOBytes: 65536)
        var loop = LoopTarget(
            start: start, bounds: bounds, readOnly: false, isBlockDevice: false, direct: false, writeFlags: 0)
        var null = NullTarget(bounds: bounds, readOnly: false)
        var queue = try TestQueue(loop)
        var nullQueue = try TestQueue(null)
        var numbers = Numbers(state: UInt64.random(in: .min ... .max))
        let seed = numbers.state
        for _ in 0..<20_000 {
            let descriptor = UblkIODescriptor(
                operationAndFlags: UInt32(truncatingIfNeeded: numbers.next() & 0xffff_ff00 | numbers.next() % 8),
                sectors: UInt32(truncatingIfNeeded: numbers.near([128, 2048])), startSector: numbers.near([2048, 1920]))
            queue.loop.queue.ownDescriptors[0] = descriptor
            let outcome = loop.begin(0, descriptor, on: &queue.loop.queue)
            #expect((outcome == .pending) == !queue.loop.queue.ring.pendingEntries().isEmpty)
            for entry in queue.loop.queue.ring.pendingEntries() where entry.operation != IOUring.Operation.fsync {
                // For a data transfer; a range has its length in the address field.
                let isData = entry.operation == IOUring.Operation.read || entry.operation == IOUring.Operation.write
                let length = isData ? UInt64(entry.length) : entry.address
                #expect(entry.offset >= start && entry.offset - start <= size, "seed \(seed): \(descriptor)")
                #expect(length <= size - (entry.offset - start), "seed \(seed): \(descriptor)")
                if isData { #expect(length <= 65536, "seed \(seed): \(descriptor)") }
            }
            queue.loop.queue.ring.discardPending()
            // As if each range were done before the next one arrives.
            while queue.loop.queue.ranges.underWay > 0 { #expect(queue.loop.queue.ranges.end() == nil) }
            let answer = null.begin(0, descriptor, on: &nullQueue.loop.queue)
            if answer.rawValue > 0 {
                #expect(bounds.containsData(descriptor) && answer.rawValue == Int32(descriptor.sectors * 512))
            }
        }
    }

    private static let bounds = DiskBounds(size: 1 << 20, maxIOBytes: 65536)
    private static let data = RequestKey(tag: 0, .data)

    private func read(sectors: UInt32, startSector: UInt64 = 0) -> UblkIODescriptor {
        UblkIODescriptor(
            operationAndFlags: UInt32(UblkIOOperation.read), sectors: sectors, startSector: startSector)
    }

    // What the fuzzer io-descriptor found: the driver does not change the descriptor of a request that the worker holds, but
    // nothing here may depend on that.

    @Test("that leave the disk while zeros are on their way fail, and the next request on the tag begins anew")
    func leavesDisk() throws {
        var queue = try TestQueue(NullTarget(bounds: Self.bounds, readOnly: false), zeroCopy: true)
        queue.loop.queue.ownDescriptors[0] = read(sectors: 8)
        #expect(queue.loop.target.begin(0, read(sectors: 8), on: &queue.loop.queue) == .pending)
        #expect(queue.loop.target.finish(Self.data, result: 512, on: &queue.loop.queue) == .pending)
        queue.loop.queue.ownDescriptors[0] = read(sectors: 8, startSector: 1 << 40)
        #expect(queue.loop.target.finish(Self.data, result: 512, on: &queue.loop.queue) == .failed(EIO))
        #expect(queue.loop.queue.requests[0].moved == 0 && queue.loop.queue.requests[0].troubled == 0)
    }

    @Test("that get shorter than what has come already fail, whatever the kernel says next", arguments: [-EINTR, 512])
    func getsShorter(result: Int32) throws {
        var queue = try TestQueue(NullTarget(bounds: Self.bounds, readOnly: false), zeroCopy: true)
        queue.loop.queue.ownDescriptors[0] = read(sectors: 8)
        #expect(queue.loop.target.begin(0, read(sectors: 8), on: &queue.loop.queue) == .pending)
        #expect(queue.loop.target.finish(Self.data, result: 1024, on: &queue.loop.queue) == .pending)
        queue.loop.queue.ownDescriptors[0] = read(sectors: 1)
        #expect(queue.loop.target.finish(Self.data, result: result, on: &queue.loop.queue) == .failed(EIO))
        #expect(queue.loop.queue.requests[0].moved == 0)
    }

    @Test("that turn from a read into a write are not written to a read-only disk")
    func becomesWrite() throws {
        let target = LoopTarget(
            start: 0, bounds: Self.bounds, readOnly: true, isBlockDevice: false, direct: false, writeFlags: 0)
        var queue = try TestQueue(target)
        queue.loop.queue.ownDescriptors[0] = read(sectors: 8)
        #expect(queue.loop.target.begin(0, read(sectors: 8), on: &queue.loop.queue) == .pending)
        queue.loop.queue.ring.discardPending()
        queue.loop.queue.ownDescriptors[0].operationAndFlags = UInt32(UblkIOOperation.write)
        #expect(queue.loop.target.finish(Self.data, result: -EAGAIN, on: &queue.loop.queue) == .failed(EIO))
        #expect(queue.loop.queue.ring.pendingEntries().isEmpty)
    }
}
