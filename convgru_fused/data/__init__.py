"""Data for the video models."""

from .flow import FlowCache, FlowClips, WithFlow, optical_flow
from .folders import VideoList, hmdb51, ucf101, video_folder
from .generated import GeneratedTask
from .real import PanDirection, SegmentOrder, packaged_video
from .tasks import EventGap, EventOrder, LimitedLifetimeDots, PathTracker
from .video_clips import CheckedVideos, TestClips, VideoClips, check_videos

__all__ = [
    "CheckedVideos",
    "EventGap",
    "EventOrder",
    "FlowCache",
    "FlowClips",
    "GeneratedTask",
    "LimitedLifetimeDots",
    "PanDirection",
    "PathTracker",
    "SegmentOrder",
    "TestClips",
    "VideoClips",
    "VideoList",
    "WithFlow",
    "check_videos",
    "hmdb51",
    "optical_flow",
    "packaged_video",
    "ucf101",
    "video_folder",
]
