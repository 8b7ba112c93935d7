/// The interfaces of `ubd provide` in Varlink's interface definition language (UAPI.20).
enum StorageProviderDescription {
    /// As systemd 262 declares it (src/shared/varlink-io.systemd.StorageProvider.c): names and types are systemd's, the comments
    /// say what this provider does.
    static let text = """
        # Hands storage volumes over as open files.
        interface io.systemd.StorageProvider

        type VolumeType (blk, reg, dir)

        # any: open it, or make it when it is missing. new: make it. open: open it.
        type CreateMode (any, new, open)

        # Opens a volume. The file comes with the reply, at fileDescriptorIndex. Volumes are block devices, so requestAs is
        # blk or null. readOnly null: writable where the volume is. createSizeBytes, a multiple of 512: needed to make one.
        method Acquire(
          name: string,
          createMode: ?CreateMode,
          template: ?string,
          readOnly: ?bool,
          requestAs: ?VolumeType,
          createSizeBytes: ?int,
          allowInteractiveAuthentication: ?bool
        ) -> (
          fileDescriptorIndex: int,
          type: VolumeType,
          readOnly: bool,
          baseUID: ?int,
          baseGID: ?int
        )

        # A reply for each volume whose name matches the glob. Must be called with more.
        method ListVolumes(matchName: ?string) -> (
          name: string,
          aliases: ?[]string,
          type: VolumeType,
          readOnly: ?bool,
          sizeBytes: ?int,
          usedBytes: ?int
        )

        # A reply for each template whose name matches the glob. Must be called with more.
        method ListTemplates(matchName: ?string) -> (
          name: string,
          type: VolumeType
        )

        error NoSuchVolume ()
        error VolumeExists ()
        error NoSuchTemplate ()
        error TypeNotSupported ()
        error WrongType ()
        error CreateNotSupported ()
        error CreateSizeRequired ()
        error ReadOnlyVolume ()
        error BadTemplate ()

        """

    static let own = """
        # What ubd adds to io.systemd.StorageProvider.
        interface io.ubd.Provider

        # A device could not be added or opened: what was wrong, and what to do next.
        error Failed (message: string, remedy: string)

        """
}
