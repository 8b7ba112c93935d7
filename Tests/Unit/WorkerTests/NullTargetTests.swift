import Glibc
import KernelABI
import Testing
import WorkerProtocol

@testable import Worker

@Suite("The null target")
struct NullTargetTests {
    private func queue(readOnly: Bool = false) throws -> TestQueue<NullTarget> {
        try TestQueue(NullTarget(bounds: DiskBounds(size: 1 << 20, maxIOBytes: 65536), readOnly: readOnly))
    }

    @Test("reads zeros, and nothing else, whatever was written before")
    func zeros() throws {
        var queue = try queue()
        let fresh = try queue.read(sector: 0, sectors: 8)
        #expect(fresh.result == 4096)
        #expect(fresh.data.allSatisfy { $0 == 0 })
        #expect(try queue.write(sector: 3, TestFile.pattern(4096)) == 4096)
        #expect(try queue.write(sector: 3, TestFile.pattern(512)) == 512)
        // Longer than the last write: the first one's bytes must not show either.
        let after = try queue.read(sector: 3, sectors: 16)
        #expect(after.result == 8192)
        #expect(after.data.allSatisfy { $0 == 0 })
    }

    @Test("submits nothing")
    func nothing() throws {
        var queue = try queue()
        _ = try queue.read(sector: 0, sectors: 8)
        _ = try queue.perform(UblkIOOperation.flush)
        let count = queue.submitted.count
        #expect(count == 0)
    }

    @Test("takes flush, discard and write-zeroes")
    func rare() throws {
        var queue = try queue()
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        #expect(try queue.perform(UblkIOOperation.discard, sector: 0, sectors: 2048) == 0)
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sector: 8, sectors: 8) == 0)
    }

    @Test("refuses what it does not know, and what lies beyond its end")
    func refusals() throws {
        var queue = try queue()
        #expect(try queue.perform(4, sectors: 1) == -EOPNOTSUPP)
        #expect(try queue.perform(200, sectors: 1) == -EOPNOTSUPP)
        #expect(try queue.perform(UblkIOOperation.read, sector: 2048, sectors: 1) == -EIO)
        #expect(try queue.perform(UblkIOOperation.write, sector: .max, sectors: 8) == -EIO)
        #expect(try queue.perform(UblkIOOperation.discard, sector: 2047, sectors: 2) == -EIO)
        #expect(try queue.perform(UblkIOOperation.read, sector: 0, sectors: 129) == -EIO)
        #expect(try queue.read(sector: 0, sectors: 1).result == 512)
    }

    @Test("refuses every change when it is read-only")
    func readOnly() throws {
        var queue = try queue(readOnly: true)
        #expect(try queue.write(sector: 0, TestFile.pattern(512)) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.discard, sectors: 8) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sectors: 8) == -EROFS)
        #expect(try queue.read(sector: 0, sectors: 1).result == 512)
    }

    private func geometry(_ change: (inout LaunchMessage) -> Void) throws -> Geometry {
        var launch = LaunchMessage(target: .null, queues: 1, depth: 1, maxIOBytes: 65536)
        change(&launch)
        return try NullTarget.open(launch).geometry
    }

    @Test("is 250 GiB of 512-byte blocks unless told otherwise")
    func defaults() throws {
        let geometry = try geometry { _ in }
        #expect(geometry.size == 268_435_456_000)
        #expect(geometry.logicalBlock == 512)
        #expect(geometry.attributes == [])
        #expect(geometry.discardGranularity == 512)
    }

    @Test("rounds its size down to its blocks, and says so")
    func rounding() throws {
        let geometry = try geometry {
            $0.options.size = 10_000
            $0.options.blockSize = 4096
        }
        #expect(geometry.size == 8192)
        #expect(geometry.attributes == .sizeRoundedDown)
    }

    @Test("refuses sizes and blocks that make no disk")
    func nonsense() {
        #expect(throws: WorkerFailure(.smallerThanBlock, detail: 512)) { try geometry { $0.options.size = 511 } }
        #expect(throws: WorkerFailure(.geometry, errno: EINVAL, detail: 1000)) {
            try geometry { $0.options.blockSize = 1000 }
        }
        #expect(throws: WorkerFailure(.geometry, errno: EINVAL, detail: 8192)) {
            try geometry { $0.options.blockSize = 8192 }
        }
        #expect(throws: WorkerFailure(.blockSizeTooSmall, detail: 512)) { try geometry { $0.options.blockSize = 256 } }
        #expect(throws: WorkerFailure(.sizeBeyondEnd, detail: UInt64(Int64.max))) {
            try geometry { $0.options.size = 1 << 63 }
        }
    }

    @Test("offers no change when it is read-only")
    func readOnlyGeometry() throws {
        let geometry = try geometry { $0.flags = .readOnly }
        #expect(geometry.attributes == .readOnly)
        #expect(geometry.maxDiscardSectors == 0)
        #expect(geometry.maxWriteZeroesSectors == 0)
    }
}
