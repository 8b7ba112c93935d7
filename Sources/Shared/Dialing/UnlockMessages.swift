import Varlink

// What `ubd-crypt` says to the `ubd` that started it, once, over a SEQPACKET pair (`dialDescriptor`): one JSON object.

/// Where a `ubd-crypt` finds an open file with the key, when it is told so.
public let unlockKeyDescriptor: Int32 = 4
/// Where it finds the volume's file: the very file that becomes a device, whatever its name means by then.
public let unlockFileDescriptor: Int32 = 5
/// Where it finds the detached header, when there is one.
public let unlockHeaderDescriptor: Int32 = 6

/// What the header of a LUKS volume says. The volume key comes with it, in a sealed memfd.
public struct UnlockedVolume: Equatable, Sendable {
    /// Bytes of the data file before the encrypted data.
    public var offset: UInt64
    /// Bytes of the encrypted data; nil: up to the end of the file.
    public var size: UInt64?
    /// Bytes.
    public var sectorSize: UInt32
    /// Number of the first 512-byte sector, for its tweak.
    public var firstSector: UInt64
    /// Tells its key from others (`DeviceOptions.keyMark`).
    public var keyMark: UInt64

    public init(offset: UInt64, size: UInt64?, sectorSize: UInt32, firstSector: UInt64, keyMark: UInt64 = 0) {
        self.offset = offset
        self.size = size
        self.sectorSize = sectorSize
        self.firstSector = firstSector
        self.keyMark = keyMark
    }
}

public enum UnlockReply: Equatable, Sendable {
    case unlocked(UnlockedVolume)
    case failed(DialFailure)
}

extension UnlockReply {
    public var bytes: [UInt8] {
        switch self {
        case .failed(let failure): DialReply.failed(failure).bytes
        case .unlocked(let volume):
            JSON.record([
                ("offset", .string(String(volume.offset))), ("size", volume.size.map { .string(String($0)) }),
                ("sectorSize", .string(String(volume.sectorSize))),
                ("firstSector", .string(String(volume.firstSector))), ("keyMark", .string(String(volume.keyMark))),
            ]).bytes
        }
    }

    public init(bytes: [UInt8]) throws(BrokenDialMessage) {
        let json: JSON
        do { json = try JSON(parsing: bytes, limits: JSONLimits(bytes: longestDialMessage, depth: 2)) } catch {
            throw BrokenDialMessage()
        }
        func number<Number: FixedWidthInteger>(_ name: String) throws(BrokenDialMessage) -> Number {
            guard case .string(let text)? = json[name], let number = Number(text) else { throw BrokenDialMessage() }
            return number
        }
        guard json["failed"] == nil else {
            guard case .failed(let failure) = try DialReply(bytes: bytes) else { throw BrokenDialMessage() }
            self = .failed(failure)
            return
        }
        self = .unlocked(
            UnlockedVolume(
                offset: try number("offset"), size: json["size"] == nil ? nil : try number("size"),
                sectorSize: try number("sectorSize"), firstSector: try number("firstSector"),
                keyMark: try number("keyMark")))
    }
}
