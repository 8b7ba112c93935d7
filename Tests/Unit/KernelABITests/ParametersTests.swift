import KernelABI
import Testing

@Suite("Device parameters")
struct ParametersTests {
    private func word<T: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int, _ type: T.Type = T.self) -> T {
        bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: T.self) }
    }

    private func full() -> UblkParameters {
        var parameters = UblkParameters()
        parameters.attributes = [.volatileCache, .fua]
        parameters.logicalBlockShift = 12
        parameters.physicalBlockShift = 13
        parameters.optimalIOShift = 14
        parameters.minimumIOShift = 15
        parameters.maxSectors = 1024
        parameters.diskSectors = 0x1_0000_0008
        parameters.virtualBoundaryMask = 0xfff
        parameters.discard = UblkParameters.Discard(
            granularity: 4096, maxDiscardSectors: 77, maxWriteZeroesSectors: 78)
        parameters.dmaAlignmentMask = 511
        return parameters
    }

    @Test("encoding puts every field where linux/ublk_cmd.h has it")
    func encoding() {
        let bytes = full().encoded()
        #expect(bytes.count == 152)
        #expect(word(bytes, 0, UInt32.self) == 152)
        // Basic, discard and DMA alignment are valid; device numbers are never sent.
        #expect(word(bytes, 4, UInt32.self) == 0b10011)
        #expect(word(bytes, 8, UInt32.self) == 0b1100)
        #expect(Array(bytes[12..<16]) == [12, 13, 14, 15])
        #expect(word(bytes, 16, UInt32.self) == 1024)
        #expect(word(bytes, 24, UInt64.self) == 0x1_0000_0008)
        #expect(word(bytes, 32, UInt64.self) == 0xfff)
        #expect(word(bytes, 44, UInt32.self) == 4096)
        #expect(word(bytes, 48, UInt32.self) == 77)
        #expect(word(bytes, 52, UInt32.self) == 78)
        #expect(word(bytes, 56, UInt16.self) == 1)
        #expect(word(bytes, 108, UInt32.self) == 511)
    }

    @Test("what was encoded decodes to the same")
    func roundTrip() {
        #expect(UblkParameters(decoding: full().encoded()) == full())
    }

    @Test("parts whose bit is not set are not read")
    func absentParts() {
        var bytes = full().encoded()
        bytes[4] = 1
        let parameters = UblkParameters(decoding: bytes)
        #expect(parameters.discard == nil)
        #expect(parameters.dmaAlignmentMask == nil)
        #expect(parameters.nodes == nil)
    }

    @Test("the device numbers of both nodes are read when the kernel fills them in")
    func nodes() {
        var bytes = UblkParameters.emptyBuffer()
        bytes[4] = 0b101
        bytes[60] = 240
        bytes[64] = 7
        bytes[68] = 3
        bytes[69] = 1
        bytes[72] = 9
        let nodes = UblkParameters(decoding: bytes).nodes
        #expect(nodes?.charMajor == 240)
        #expect(nodes?.charMinor == 7)
        #expect(nodes?.diskMajor == 259)
        #expect(nodes?.diskMinor == 9)
    }

    @Test("feature bits have names, and unknown ones show as numbers")
    func featureNames() {
        #expect(UblkFeatures(rawValue: 0x42).nameList == ["URING_CMD_COMP_IN_TASK", "CMD_IOCTL_ENCODE"])
        #expect(UblkFeatures(rawValue: 1 << 40).nameList == ["BIT_40"])
        #expect(UblkFeatures.names.map(\.bit) == Array(0...20))
    }
}
