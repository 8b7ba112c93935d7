import KernelABI
import NBDProtocol

/// What was agreed on with the server, as the queues need it for each request.
struct NBDRules: Equatable, Sendable {
    let bounds: DiskBounds
    /// Bytes of the longest read, write or write of zeros: the server's maximum, in whole blocks.
    let maximum: UInt32
    /// Bits of a start or length in sectors that a whole number of the server's smallest blocks does not have.
    let oddSectors: UInt64
    let readOnly: Bool
    let flushes: Bool
    let forces: Bool
    let trims: Bool
    let zeroes: Bool
    /// Each write is on stable storage when it is done.
    let writeThrough: Bool

    /// `minimumBlock` and `maximumBlock` in bytes; the former is a power of two of at most 4096, the latter not less.
    init(
        _ flags: NBD.ExportFlags, bounds: DiskBounds, minimumBlock: UInt32, maximumBlock: UInt32, readOnly: Bool,
        writeThrough: Bool
    ) {
        self.bounds = bounds
        let block = max(minimumBlock, 512)
        maximum = maximumBlock / block * block
        oddSectors = UInt64(block >> 9) - 1
        self.readOnly = readOnly
        flushes = flags.contains(.sendFlush) && !readOnly
        forces = flags.contains(.sendFUA)
        trims = flags.contains(.sendTrim)
        zeroes = flags.contains(.sendWriteZeroes)
        self.writeThrough = writeThrough
    }

    /// Start and length are whole blocks, and there is at least one.
    @inline(__always)
    func areBlocks(_ descriptor: UblkIODescriptor) -> Bool {
        (descriptor.startSector | UInt64(descriptor.sectors)) & oddSectors == 0 && descriptor.sectors != 0
    }

    /// Flags of something that writes. `forced`: by whoever writes.
    @inline(__always)
    func flags(forced: Bool) -> UInt16 { (forced || writeThrough) && forces ? NBD.CommandFlags.fua : 0 }

    /// A flush must follow what is written, since the server can't force it.
    @inline(__always)
    func mustFlush(forced: Bool) -> Bool { (forced || writeThrough) && !forces && flushes }
}
