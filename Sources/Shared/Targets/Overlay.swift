extension TargetManifest {
    public static let overlay = TargetManifest(
        name: "overlay", number: 6,
        summary: "Serves a file that never changes: what is written to the device is kept in a layer",
        // The layer is the first file: the worker's filter lets it punch holes into that one alone.
        inputs: [
            TargetInput(.layer, name: "layer", help: "What was written"),
            TargetInput(.blockMap, name: "map", help: "Which blocks the layer has"),
            TargetInput(
                .base, name: "file", letter: "f", isReadOnly: true,
                help: "The file, or block device, that is read and never written"),
        ],
        options: [
            TargetOption(
                TargetOption.Common.size, name: "size",
                kind: .bytes(512...BlockMap.largestDisk, multipleOf: 512, powerOfTwo: false),
                otherwise: "the file's; what a larger device has behind that begins as zeros",
                help: "Size of the device"),
            .blockSize(initial: 512),
            TargetOption(
                TargetOption.Overlay.layerKind, name: "layer-kind", kind: .choice(LayerKind.allCases.map(\.rawValue)),
                initial: .number(1), help: "Where the layer lies"
            ).agreed,
        ],
        modes: [.batchZeroCopy, .zeroCopy, .batch, .copy], queues: .one, submissions: .overlay, survival: .inputs)

    /// One of its inputs tells of each block of the disk where it is.
    public var hasBlockMap: Bool { inputs.contains { $0.role == .blockMap } }

    /// Bytes of memory that a device's content may take, beside its buffers.
    public func contentBytes(_ options: DeviceOptions) -> UInt64 {
        if hasBlockMap { return options.layerKind == .memory ? BlockMap.layerBytes(disk: options.size ?? 0) : 0 }
        return isInMemory ? options.size ?? 0 : 0
    }

    /// Bytes of memory for the tables of a device's blocks, and for blocks that are copied.
    public func tableBytes(_ options: DeviceOptions, depth: UInt16) -> UInt64 {
        guard hasBlockMap else { return 0 }
        return BlockMap.bytes(disk: options.size ?? 0) + BlockMap.workBytes(disk: options.size ?? 0, depth: depth)
    }
}

extension Submissions {
    /// Parts of a request that go side by side.
    @inlinable @inline(__always)
    public static var overlay: Submissions { Submissions(perRequest: 4) }
}

/// Where an overlay's layer lies.
public enum LayerKind: String, Sendable, CaseIterable {
    /// In a sealed memfd.
    case memory
    /// In a file without a name, which ends with the device.
    case scratch
}

/// The map of an overlay's blocks: two bits for each. It lies in a memfd, so that it outlives the worker.
public enum BlockMap {
    /// Bytes of a block.
    public static let blockBytes: UInt64 = 4096
    /// Bytes: 64 TiB, whose map takes 4 GiB.
    public static let largestDisk: UInt64 = 1 << 46
    private static let pageBytes: UInt64 = 4096

    /// Blocks of a disk of that many bytes; the last one may be cut off.
    public static func blocks(disk: UInt64) -> UInt64 { (disk + (blockBytes - 1)) / blockBytes }

    /// Bytes of the layer, in which each block has the place that it has on the disk.
    public static func layerBytes(disk: UInt64) -> UInt64 { blocks(disk: disk) * blockBytes }

    /// Bytes of the map: whole pages.
    public static func bytes(disk: UInt64) -> UInt64 { pages((blocks(disk: disk) + 3) / 4) }

    /// Bytes of a worker's own memory: one bit for each block, and for each request a block and what is under way of it.
    public static func workBytes(disk: UInt64, depth: UInt16) -> UInt64 {
        pages((blocks(disk: disk) + 63) / 64 * 8) + UInt64(depth) * (blockBytes + requestBytes)
    }

    /// Bytes beside each request's block: its parts that are under way, and a place where it waits.
    public static let requestBytes: UInt64 = 128

    private static func pages(_ bytes: UInt64) -> UInt64 { (bytes + (pageBytes - 1)) / pageBytes * pageBytes }
}

extension TargetOption {
    /// Numbers of target overlay's own options.
    public enum Overlay {
        public static let layerKind: Number = 16
    }
}

extension DeviceOptions {
    /// nil: the target has no layer.
    public var layerKind: LayerKind? {
        get {
            guard let place = self[TargetOption.Overlay.layerKind]?.number, place < UInt64(LayerKind.allCases.count)
            else { return nil }
            return LayerKind.allCases[Int(place)]
        }
        set {
            self[TargetOption.Overlay.layerKind] = newValue.flatMap { LayerKind.allCases.firstIndex(of: $0) }
                .map { .number(UInt64($0)) }
        }
    }
}
