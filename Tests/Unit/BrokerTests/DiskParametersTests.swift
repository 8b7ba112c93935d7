import KernelABI
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("What the kernel is told about a disk")
struct DiskParametersTests {
    @Test("a disk without discard or zeroes says nothing of them")
    func plain() {
        let geometry = Geometry(size: 1 << 20, logicalBlock: 512, physicalBlock: 4096)
        #expect(DiskParameters.make(geometry, maxIOBytes: 4096).discard == nil)
    }

    @Test("a disk that only writes zeroes still has a granularity, without which the driver refuses it")
    func zeroesOnly() throws {
        let geometry = Geometry(
            size: 1 << 20, logicalBlock: 512, physicalBlock: 4096, maxWriteZeroesSectors: 8)
        let discard = try #require(DiskParameters.make(geometry, maxIOBytes: 4096).discard)
        #expect(discard.granularity == 512)
        #expect(discard.maxDiscardSectors == 0)
        #expect(discard.maxWriteZeroesSectors == 8)
    }

    @Test("a disk that discards does it in its own units")
    func discards() {
        let geometry = Geometry(
            size: 1 << 20, logicalBlock: 512, physicalBlock: 4096, discardGranularity: 65536, maxDiscardSectors: 128,
            maxWriteZeroesSectors: 8)
        #expect(DiskParameters.make(geometry, maxIOBytes: 4096).discard?.granularity == 65536)
    }
}
